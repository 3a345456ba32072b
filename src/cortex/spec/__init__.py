"""
What a user may write in cortex.yaml, and how it is said when something is wrong with it. Pure: no I/O here.

Nothing reads a file, the environment or a clock; `loading` parses text that is given to it. Imports `errors` and `ids`
of the package, and otherwise only pydantic, ruamel.yaml and the standard library. Import from the modules: nothing is
imported here, so that `quantities`, `locations` and `problems` stay free of pydantic and ruamel.yaml.

quantities    `200m`, `512Mi`, `1h30m` as exact numbers that remember their spelling
locations     where models and samples are, as far as their names tell
rules         what single values have to be: names, models, handlers, variables
models        one frozen model per block of cortex.yaml, with all fields and defaults
effects       what changing a field does
document      YAML text as a tree with positions, bounded in size and depth
indentation   what a text was before its indentation went
loading       text of a cortex.yaml to a `ProjectSpec`, or all problems of the file at once
finding       what pydantic found in any file, as problems
explanation   the same, in the words of cortex.yaml
problems      the words: quoting, near misses, subjects, rendering, the index of references
schema        JSON Schema of cortex.yaml for editors
"""
