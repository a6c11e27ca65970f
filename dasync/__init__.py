"""dasync: async/await that does not stop at the edge of the process."""
