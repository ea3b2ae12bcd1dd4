// Package layout holds the tests of the tree itself: every package has a doc comment, and no layer reaches past its neighbours.
package layout
