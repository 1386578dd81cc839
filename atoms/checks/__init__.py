"""Whether a unit's directions deserve to be called atoms: claims, nulls, controls, and the certificate they make."""
