"""What is coupled with what: capture, label propagation, channel groups. No probability here."""
