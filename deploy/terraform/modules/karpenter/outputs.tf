output "node_role" {
  description = "Name of the role of Karpenter's nodes, for EC2NodeClasses."
  value       = aws_iam_role.node.name
}

output "interruption_queue" {
  description = "Name of the queue that Karpenter hears of interruptions by."
  value       = aws_sqs_queue.interruptions.name
}
