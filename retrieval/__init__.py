"""What happens after training: encode, rank, measure."""
