"""What any room may use: errors, the mesh, the host's memory, reading ahead."""
