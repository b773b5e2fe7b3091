"""The guest's kernel: requests, inodes, names, pages, and all of it as plain data. Nothing in it waits."""
