"""Where files lie and how they get there whole; light: it needs no torch.

attempt_folder   the names of an attempt's files
files            write a file or a folder whole or not at all; canonical JSON
object_store     s3://, gs://, abfs:// through pyarrow; staging
saved_adapter    an adapter that was saved before: settings, shapes, hash
retry            call again, later and later, as long as a thing is away
"""
