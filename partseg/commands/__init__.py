"""What `partseg <command>` and the files of the same names under tools/ do; each has `command()`, its command line."""
