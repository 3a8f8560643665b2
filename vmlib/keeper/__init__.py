"""The process that keeps one machine: parent of its VMM, reader of its console, writer of its logs.

Standard library only, one thread, nothing that can block for long. It outlives the process that started it.
"""
