"""What data modules share whose training goes on, after a stop, with the batch that comes next."""
