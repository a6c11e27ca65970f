"""Programs as text: what in a durable function would come out otherwise when its body is replayed. Nothing is run."""
