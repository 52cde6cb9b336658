"""The payload's protobuf schema and the module generated from it. No rules: see `manifest`."""
