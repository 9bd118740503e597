"""Whether what was removed changed anything: references, comparison, the negative control."""
