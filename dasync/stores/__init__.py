"""Row keepers. Each passes the same suite; none of them decides anything."""
