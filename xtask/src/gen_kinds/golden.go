// What the real Go library makes of JSON objects: one line for each line of standard input, either
// "ERR message" (a wrong type), "STRICT message" (unknown or duplicate fields), or
// "OK base64-of-protobuf json".
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	sjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	strict := sjson.NewSerializerWithOptions(sjson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, sjson.SerializerOptions{Strict: true})
	pb := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	for in.Scan() {
		obj, _, err := strict.Decode(in.Bytes(), nil, nil)
		if err != nil && !runtime.IsStrictDecodingError(err) {
			fmt.Printf("ERR %v\n", err)
			continue
		}
		if err != nil {
			fmt.Printf("STRICT %v\n", err)
			continue
		}
		b, err := runtime.Encode(pb, obj)
		if err != nil {
			fmt.Printf("ENC %v\n", err)
			continue
		}
		j, _ := json.Marshal(obj)
		fmt.Printf("OK %s %s\n", base64.StdEncoding.EncodeToString(b), j)
	}
}
