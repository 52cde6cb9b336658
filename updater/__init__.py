"""The node: decides, installs, reboots, proves itself. Uses images and partitions."""
