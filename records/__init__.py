"""Values on disk and what stands around them: errors, whole writes, checked reads. The lowest layer; imports nobody.

Start at `records.errors`, `records.atomic` and `records.reading`.
"""
