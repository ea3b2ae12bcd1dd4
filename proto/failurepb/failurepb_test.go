package failurepb

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/proto/failure"
)

func TestStatusRoundTrip(t *testing.T) {
	for c := failure.Invalid; c <= failure.Internal; c++ {
		in := failure.New(c, "some_code", "shop_web", "service shop_web is odd").WithHint("look at it")
		var out *failure.Error
		if !errors.As(FromStatus(Status(fmt.Errorf("deploy: %w", in))), &out) {
			t.Fatalf("%v: no failure came back", c)
		}
		if out.Class != c || out.Code != in.Code || out.Object != in.Object || out.Hint != in.Hint || out.Message != "deploy: "+in.Message {
			t.Errorf("%v came back as %+v", c, out)
		}
	}
}

func TestFromStatusWithoutDetails(t *testing.T) {
	if c := failure.ClassOf(FromStatus(status.Error(codes.Unavailable, "nobody there"))); c != failure.Unavailable {
		t.Errorf("got %v", c)
	}
	if FromStatus(nil) != nil || Status(nil) != nil || FromError(nil) != nil || ToError(nil) != nil {
		t.Error("nil is no failure")
	}
	plain := status.Error(codes.NotFound, "x")
	if Status(plain) != plain {
		t.Error("a status is left alone")
	}
}

func TestForeignBytes(t *testing.T) {
	if p := FromError(errors.New("engine said \xff")); !utf8.ValidString(p.GetMessage()) {
		t.Errorf("%q cannot be encoded", p.GetMessage())
	}
}

func TestCutKeepsCharacters(t *testing.T) {
	p := FromError(failure.New(failure.Internal, "x", "", "%s", strings.Repeat("é", maxText)))
	if len(p.GetMessage()) > maxText || !utf8.ValidString(p.GetMessage()) {
		t.Errorf("%d bytes, valid %v", len(p.GetMessage()), utf8.ValidString(p.GetMessage()))
	}
}

// FuzzFromError sends texts that somebody else wrote (an engine, a registry, a compose file): they must fit into the contract and come back.
func FuzzFromError(f *testing.F) {
	f.Add("no_such_stack", "nothing found in stack: shop", "shop", "look at the list")
	f.Add("", "\xff\xfe", strings.Repeat("ü", 3000), strings.Repeat("\U0001F600", 300))
	f.Fuzz(func(t *testing.T, code, message, object, hint string) {
		p := FromError(&failure.Error{Class: failure.Conflict, Code: code, Message: message, Object: object, Hint: hint})
		for text, most := range map[string]int{p.GetCode(): maxCode, p.GetMessage(): maxText, p.GetObject(): maxText, p.GetHint(): maxHint} {
			if len(text) > most || !utf8.ValidString(text) {
				t.Errorf("%d bytes of %d, %q", len(text), most, text)
			}
		}
		if got := failure.Of(FromStatus(Status(ToError(p)))); got.Class != failure.Conflict || got.Code != p.GetCode() || got.Message != p.GetMessage() || got.Hint != p.GetHint() {
			t.Errorf("came back as %#v", got)
		}
	})
}
