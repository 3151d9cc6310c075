"""File name suffixes of media."""

from __future__ import annotations

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo", ".ppm", ".jp2", ".avif"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv"}
)
#: Media that are not read.
OTHER_SUFFIXES = frozenset({".wav", ".mp3", ".flac", ".ogg", ".m4a", ".svg", ".heic", ".pdf", ".npy"})
