"""What works in a guest, and the jobs that migrate it meanwhile: everything is checked afterwards."""
