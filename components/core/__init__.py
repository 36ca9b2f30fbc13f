"""What every stage shares and nothing outside can touch: only the standard library and pydantic."""
