"""What one worker does: read its rows, run the network forward and backward."""
