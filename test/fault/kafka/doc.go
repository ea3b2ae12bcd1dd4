// Package kafka breaks what is between plane and agent on Kafka's side: brokers go away and come back, answers are lost, topics are made anew, offsets and messages
// expire, commands come in floods. Each command must have one outcome, nothing may be applied twice, and the next deployment must be accepted.
//
// The plane and the agent are real and run in the test's process, on the real Swarm of this machine; brokers are processes of their own, so that they can be killed:
// the library that the plane embeds, and in the long form a real Apache Kafka as well (test/kafka).
package kafka
