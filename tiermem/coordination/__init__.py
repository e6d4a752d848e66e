"""What several processes do together, on nothing but the public operations of `Memory`."""
