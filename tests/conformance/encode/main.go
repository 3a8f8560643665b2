// Command encode answers questions about HCL with the real libraries. It reads one JSON object a line from standard
// input and writes one for each: {"spec", "json", "variables"} or {"spec", "hcl", "variables"} gives {"msgpack"} in hex,
// {"job"} gives {"tree"}, the whole file as hcl/v2 reads it, {"agent"} the same by the first hcl. What is refused gives {"complaints"}.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"chv.invalid/hclspec"
	hclspecpb "chv.invalid/proto/hclspec"
	hcl1 "github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
	"google.golang.org/protobuf/proto"
)

type question struct {
	Spec      []byte          `json:"spec"`
	JSON      string          `json:"json"`
	HCL       *string         `json:"hcl"`
	Job       *string         `json:"job"`
	Agent     *string         `json:"agent"`
	Variables json.RawMessage `json:"variables"`
}

type answer struct {
	Msgpack string         `json:"msgpack,omitempty"`
	Tree    map[string]any `json:"tree,omitempty"`
	// All that is said against it, each as "summary: detail".
	Complaints []string `json:"complaints,omitempty"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked question
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			fmt.Fprintln(os.Stderr, "not a question:", err)
			os.Exit(2)
		}
		given, err := reply(asked)
		if err != nil {
			given = answer{Complaints: complaints(err)}
		}
		if err := out.Encode(given); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func reply(asked question) (answer, error) {
	if asked.Job != nil {
		tree, err := readBody(*asked.Job)
		return answer{Tree: tree}, err
	}
	if asked.Agent != nil {
		tree := map[string]any{}
		err := hcl1.Decode(&tree, *asked.Agent)
		return answer{Tree: tree}, err
	}
	spec := &hclspecpb.Spec{}
	if err := proto.Unmarshal(asked.Spec, spec); err != nil {
		return answer{}, err
	}
	variables, err := variablesOf(asked.Variables)
	if err != nil {
		return answer{}, err
	}
	text := []byte(asked.JSON)
	if asked.HCL != nil {
		body, err := readBody(*asked.HCL)
		if err != nil {
			return answer{}, err
		}
		if text, err = json.Marshal(body); err != nil {
			return answer{}, err
		}
	}
	packed, err := hclspec.Encode(spec, text, variables)
	return answer{Msgpack: hex.EncodeToString(packed)}, err
}

func complaints(err error) []string {
	var diagnostics hcl.Diagnostics
	if !errors.As(err, &diagnostics) {
		return []string{err.Error()}
	}
	var found []string
	for _, one := range diagnostics {
		found = append(found, one.Summary+": "+one.Detail)
	}
	return found
}

func variablesOf(text json.RawMessage) (map[string]cty.Value, error) {
	if len(text) == 0 {
		return nil, nil
	}
	type_, err := ctyjson.ImpliedType(text)
	if err != nil {
		return nil, err
	}
	value, err := ctyjson.Unmarshal(text, type_)
	if err != nil {
		return nil, err
	}
	return value.AsValueMap(), nil
}
