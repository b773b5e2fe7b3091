"""vhost-user over Unix sockets: seam S1 between two processes."""
