"""What every command uses: errors, files, progress bars."""
