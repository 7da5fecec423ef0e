"""The folder that makes every write short; see its `sitecustomize`."""
