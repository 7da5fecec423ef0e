"""mlp-core: flows, steps, parameters, artifacts and runs, on hooks that plugins implement."""
