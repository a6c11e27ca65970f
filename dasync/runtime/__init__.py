"""What runs inside a process: functions, promises, executions."""
