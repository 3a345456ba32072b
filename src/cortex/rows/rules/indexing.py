"""Values chosen by index: slices, gathers, scatters."""
