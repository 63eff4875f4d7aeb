"""What a training would cost before anything runs: memory and work in closed form."""
