package atomicfile

// syncDir does nothing: Windows offers no way to sync a folder, and NTFS journals renames.
func syncDir(string) error { return nil }
