"""Trust: what this node may install, shown by signatures. TUF says what, the node decides whether.

Import the modules by name: `refresh` and `fetcher` load tuf and requests, all others must not.
"""
