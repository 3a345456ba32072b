"""
The command line: one file per command. A command is a plain function with named arguments that returns an exit code.

Streams, colours, width, clock and environment come from a `Terminal` that is passed in. Results go to stdout, talk to
stderr. Heavy imports (rich, pydantic, ruamel.yaml, psutil) stand inside the functions that need them: `cortex get`
answers in under 200 ms. Never imports the control plane, the agent or the replica; it starts them as processes.

entry       the scripts' first code: Ctrl-C at once       main        the group, settings as flags
command     how a command is declared                     parameters  what several commands take, completed by a shell
boundary    errors → exit codes, fault reports            problems    errors → text
terminal    where input, output and time come from        text        words, tables, durations
live        the moving part of a deploy                   starter     what `cortex init` writes
reference   docs/cli.md out of the commands' own help
"""
