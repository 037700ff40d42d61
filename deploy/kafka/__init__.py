"""A real Apache Kafka for tests, from its published jars. Not what anybody should run in production."""
