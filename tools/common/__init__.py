"""What every command uses: errors and messages, files and locks, models by name, processes, progress bars."""
