"""What is printed from the code: the catalogue of errors, manual pages, completion files.

May know every room, and none knows it; nothing here is installed on a node.
"""
