"""De-identification by PS3.15 Annex E: a profile decides, a splicer does it, a check proves it.

profile (table_e1_1.txt, iod_types.txt) -> splicer -> check, all held together by `instance.py`, one file at a time.
"""
