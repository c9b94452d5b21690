"""INTERN's own operations. Each is a folder: the op, its plain torch reference, and a README with the maths."""
