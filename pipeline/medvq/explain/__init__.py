"""Why a probe says what it says, which images are alike, and which to label."""
