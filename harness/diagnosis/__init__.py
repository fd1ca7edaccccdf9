"""Why a process ended or stalled: rules from exit status, logs, journal and samples to a class."""
