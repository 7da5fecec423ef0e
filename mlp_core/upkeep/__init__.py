"""How a store is kept in order: checked, mended, cleared of what nobody needs, copied and packed."""
