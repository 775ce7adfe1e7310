"""What every package uses: errors, files, progress, devices, the hub, workers, plug-ins and tables as text."""
