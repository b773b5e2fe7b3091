"""Tests of any vhost-user-fs back-end, without a virtual machine: see README.md."""
