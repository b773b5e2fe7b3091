"""vmsim: a virtual machine with a complete virtio-fs device and its stateful migration, in one process."""
