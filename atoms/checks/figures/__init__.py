"""The pictures of a certificate, drawn from its tables and numbers alone, so that a saved one can be drawn again."""
