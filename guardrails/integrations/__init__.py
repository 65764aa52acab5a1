"""The public adapters. Each imports one foreign library, which no other room imports."""
