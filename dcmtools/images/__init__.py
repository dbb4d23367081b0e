"""Things made from pixels: NIfTI volumes, previews, phantoms."""
