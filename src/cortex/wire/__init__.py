"""
Messages between our processes, and files that several of them read. Nothing heavier than msgspec.

Pure data, but for the modules whose subject is a descriptor or a file: `framing`, `channel`, `secrecy`, `rawoutput`,
`protobuf` and what reads models through it (`onnx_proto`, `saved_model_proto`), and the reading end of `indexes`.

Unknown fields are ignored on reading, so that a newer process can talk to an older one; new fields have defaults.
"""
