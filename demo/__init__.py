"""A fleet on one machine: real daemons, disks, etcd and server; only firmware is a model."""
