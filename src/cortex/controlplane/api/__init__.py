"""The control plane's HTTP API: parse, call one function, render. See `wire.operator` for the contract."""
