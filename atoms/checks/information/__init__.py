"""Information between atoms, rows and labels: the bridge from the information lattice to units."""
